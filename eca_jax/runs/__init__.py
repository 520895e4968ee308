"""What a run leaves on disk, and the state in it."""
