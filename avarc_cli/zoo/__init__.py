"""What models there are (cards), where their files lie (files), and how a file is read (checkpoint)."""
