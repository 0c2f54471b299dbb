"""How processes of the gateway talk to each other."""
