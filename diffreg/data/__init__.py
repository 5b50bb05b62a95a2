"""Images, displacement files and pairs: everything that enters or leaves through a file."""
