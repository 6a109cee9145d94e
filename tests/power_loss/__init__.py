"A process that writes, a record of what it asked of the disk, and disks as a power loss could have left them"
