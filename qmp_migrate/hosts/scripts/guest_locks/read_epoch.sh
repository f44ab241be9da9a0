#: $1 epoch file.
#: relay: epoch
read -r now <"$1" && echo "$now"
