"""The programs inside an emulated host. These modules import next to nothing."""
