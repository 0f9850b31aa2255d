// Sends one ECHO and one CLASSIFY frame to the socket named first, the image from the file named second.
package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
)

func ask(connection net.Conn, kind byte, body []byte) (byte, []byte) {
	header := binary.BigEndian.AppendUint32(nil, uint32(1+len(body)))
	connection.Write(append(append(header, kind), body...))
	io.ReadFull(connection, header)
	answer := make([]byte, binary.BigEndian.Uint32(header))
	io.ReadFull(connection, answer)
	return answer[0], answer[1:]
}

func main() {
	connection, err := net.Dial("unix", os.Args[1])
	if err != nil {
		panic(err)
	}
	image, _ := os.ReadFile(os.Args[2])
	for kind, body := range [][]byte{[]byte("hello"), image} {
		answered, said := ask(connection, byte(kind), body)
		fmt.Printf("%d %s\n", answered, said)
	}
}
