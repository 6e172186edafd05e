"""The trace: the routing of a whole run in a folder that plain zarr can read."""
