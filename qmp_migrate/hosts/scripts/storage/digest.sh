#: $1… files. For each its SHA-256.
for path do sha256sum -b <"$path" || exit 1; done
