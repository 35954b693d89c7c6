"""Data: arrays, folders of images, loaders, and their preprocessing."""
