"""Files that are not on this machine: on web servers, in object stores, on the Hugging Face hub."""
