"""What is special to one paper: its grids per scale, its tables, its claims. Nothing general."""
