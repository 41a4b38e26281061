"""Data in files of the user's: arrays, folders of images, tables, and data sets of Hugging Face."""
