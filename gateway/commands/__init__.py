"""The commands of `gateway`, one a file; what they need is imported when they run, so that --help answers at once."""
