"""The methods the suite is about, one readable file each."""
