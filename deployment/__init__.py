"""How a federation gets onto real machines: its authority, the kits of its server and sites, its proxy."""
