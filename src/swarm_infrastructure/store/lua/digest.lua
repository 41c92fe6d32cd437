-- digest: which build of the library this server holds.
-- Returns  the SHA-256 of the assembled source, in hex
register('digest', function() return LIBRARY_DIGEST end, { 'no-writes' })
