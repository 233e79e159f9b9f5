"""ARM, except for chips: address map, registers, boot protocol, GIC, board."""
