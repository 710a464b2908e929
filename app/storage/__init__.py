"""Object stores behind one port: S3 by presigned requests, local disk by links signed here."""
