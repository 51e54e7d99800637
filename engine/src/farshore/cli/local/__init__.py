"""Commands that act on the machine that they run on."""
