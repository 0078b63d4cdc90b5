"""`mayfly bench`: how fast the service is, measured on this machine."""
