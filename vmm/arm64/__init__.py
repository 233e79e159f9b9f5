"""What is specific to ARM and not a chip: address map, registers, boot protocol, GIC, board."""
