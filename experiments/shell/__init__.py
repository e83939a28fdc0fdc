"""What every program shares towards its user: the command line, the screen, and how it ends."""
