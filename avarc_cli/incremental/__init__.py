"""Classes added to a frozen model: fitting them, comparing them fairly, the bank's changes, and the usual protocol."""
