"""What all pages of ours are made of: one file each, which asks nobody for anything."""
