"""Everything ARM that is not a chip: address map, registers, boot protocol, GIC, board."""
