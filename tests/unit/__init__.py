"""One module at a time, in this process: folders mirror ``job``, files its modules."""
