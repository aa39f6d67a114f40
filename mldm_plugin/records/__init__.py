"""What a run leaves behind: files that are whole, its numbers, its panels."""
