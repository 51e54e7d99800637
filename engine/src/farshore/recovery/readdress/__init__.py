"""New addresses in a guest's network configuration: from text to text, one module for each format. Pure."""
