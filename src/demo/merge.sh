# Merges what the audits found. Argument: the folder that they share.
set -eu
LC_ALL=C
export LC_ALL
find "$1" -type f -name '*.row' -exec cat {} + > rows

top() {
    sort -t '	' -k "$1,$1nr" -k 1,1 rows | head -n 10 | awk -F '\t' '
        { printf "%s{\"name\":\"%s\",\"files\":%d,\"code\":%d,\"comment\":%d,\"blank\":%d,", \
            (NR > 1 ? "," : ""), $1, $2, $3, $4, $5
          printf "\"unsafe\":%d,\"longest_line\":%d,\"largest_file\":\"%s\",\"largest_bytes\":%d}", \
            $6, $7, $8, $9 }'
}

{
    printf '{"largest":['
    top 3
    printf '],"most_unsafe":['
    top 6
    printf '],"totals":'
    awk -F '\t' '
        { files += $2; code += $3; comment += $4; blank += $5; unsafe += $6 }
        $7 > longest { longest = $7; in_name = $1 }
        $9 > most { most = $9; file = $1 "/" $8 }
        END {
            printf "{\"folders\":%d,\"files\":%d,\"code\":%d,\"comment\":%d,\"blank\":%d,", \
                NR, files, code, comment, blank
            printf "\"unsafe\":%d,\"longest_line\":%d,\"longest_line_in\":\"%s\",", \
                unsafe, longest, in_name
            printf "\"largest_file\":\"%s\",\"largest_bytes\":%d}", file, most
        }' rows
    printf '}\n'
} > report.json
