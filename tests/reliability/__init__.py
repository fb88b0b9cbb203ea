"""Kills, interrupts, full disks, races and load that lasts."""
