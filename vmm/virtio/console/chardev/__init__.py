"""The host's ends of a guest's console ports: where their bytes go to, and come from."""
