"""Small guests made of Debian's packages."""
