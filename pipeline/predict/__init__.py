"""A model on pictures, folders, films and cameras; what it saw, in the file formats that other tools read."""
