module gemmule/tests/gotemplate

go 1.21
