"""From one folder of photos to one folder with a classifier: `avarc train classifier`."""
