# Audits one folder of source: lines by kind, `unsafe` blocks, the longest line, the largest file.
# Arguments: the folder, its number, a folder that all jobs of this machine share.
set -eu
LC_ALL=C
export LC_ALL
scratch=$PWD
name=${1##*/}
printf '%s: reading\n' "$name"
cd "$1"

find . -type f \( -name '*.rs' -o -name '*.c' -o -name '*.h' -o -name '*.go' -o -name '*.js' \
    -o -name '*.ts' -o -name '*.java' -o -name '*.py' -o -name '*.sh' \) -exec awk '
    FNR == 1 { files++; block = 0; hash = FILENAME ~ /[.](py|sh)$/ }
    {
        if (length($0) > longest) longest = length($0)
        line = $0
        sub(/^[ \t\r]+/, "", line)
        if (line == "" && !block) { blank++; next }
        if (block) { comment++; if (line ~ /[*]\//) block = 0; next }
        if (hash ? line ~ /^#/ : line ~ /^\/\//) { comment++; next }
        if (!hash && line ~ /^\/[*]/) { comment++; if (line !~ /[*]\//) block = 1; next }
        code++
        sub(/[ \t]\/\/.*/, "", line)
        unsafe += gsub(/unsafe[ \t]*[{]/, "", line)
    }
    END { print files + 0, code + 0, comment + 0, blank + 0, unsafe + 0, longest + 0 }
' {} + > "$scratch/counts"

find . -type f -exec wc -c {} + | awk '
    { bytes = $1; sub(/^ *[0-9]+ /, ""); if ($0 != "total" && bytes > most) { most = bytes; file = $0 } }
    END { sub(/^[.]\//, "", file); gsub(/[\t"\\]/, "?", file); print most + 0 "\t" file }
' > "$scratch/largest"

cd "$scratch"
name=$(printf '%s' "$name" | tr '\t\n"\\' '????')
awk -v name="$name" '
    FNR == NR { split($0, largest, "\t"); next }
    { files += $1; code += $2; comment += $3; blank += $4; unsafe += $5; if ($6 > longest) longest = $6 }
    END {
        printf "{\"name\":\"%s\",\"files\":%d,\"code\":%d,\"comment\":%d,\"blank\":%d,", \
            name, files, code, comment, blank
        printf "\"unsafe\":%d,\"longest_line\":%d,\"largest_file\":\"%s\",\"largest_bytes\":%d}\n", \
            unsafe, longest, largest[2], largest[1]
        row = sprintf("%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%d", name, files, code, comment, blank, \
            unsafe, longest, largest[2], largest[1])
        print row > "row"
    }
' largest counts > audit.json
# Whole or not at all, since others read there.
cp row "$3/$2.part"
mv "$3/$2.part" "$3/$2.row"
awk -F '\t' '{ print $1 ": " $3 " lines of code in " $2 " files" }' row
