"""What a picture is made from besides noise: conditions, encoded as tokens for cross-attention."""
