"""Who the settings were chosen on, and who the figures are of."""

TUNED = ("1000", "1001", "1002", "1006", "1007", "1008", "1125")
REPORTED = ("1009", "1010", "1011", "1012", "1013", "1014", "1015", "1017", "1036", "1101")
# (moving, fixed): each onto the next.
PAIRS = list(zip(REPORTED, REPORTED[1:] + REPORTED[:1], strict=True))
PEERS = ("greedy NCC", "greedy NMI", "ANTs")
