"""The page of a run: what was trained, what its losses did, what they saw, and how to do it again."""
