"""What a process finds around it: files, memory, signals, ranks, extras, the user's own code."""
