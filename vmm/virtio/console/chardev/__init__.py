"""The host's ends of a guest's console ports: where bytes go to and come from."""
