"""The model: from what the user names to a module with a checkpoint's weights in it."""
