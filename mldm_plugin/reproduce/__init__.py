"""The papers' tables and figures, each by one command, at the papers' own scale or at one that two CPU cores bear."""
