"""What people run: the command line, the HTTP client, and the whole service on one machine."""
