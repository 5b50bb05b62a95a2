"""The demonstration, `diffreg demo`: two heads that come with the package."""
