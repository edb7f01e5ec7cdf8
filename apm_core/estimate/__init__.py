"""What a run will take, before it starts: jobs, work, hours, disk space. No data is read but its
size.
"""
