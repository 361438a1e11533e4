"""The HTTP door and the console."""
