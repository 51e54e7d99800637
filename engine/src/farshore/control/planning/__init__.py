"""Plans: read from what people wrote, held against what the sites have, made a record."""
