module frames

go 1.21
