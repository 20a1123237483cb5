/* As in tunesmith/checks/shingles.py; a test compares them. */

#define SHINGLE 3
#define BANDS 24
#define ROWS_PER_BAND 6
#define HASHES (BANDS * ROWS_PER_BAND)
#define REPRESENTATIVES 1024
#define FACTOR_1 0x9E3779B97F4A7C15u
#define FACTOR_2 0xC2B2AE3D27D4EB4Fu
#define FACTOR_3 0x165667B19E3779F9u
#define FACTOR_4 0xD6E8FEB86659FD93u
