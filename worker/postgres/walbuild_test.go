package postgres

import (
	"encoding/binary"
	"hash/crc32"
)

// recordOf makes a record with main data and its right checksum.
func recordOf(manager, info byte, prev, main []byte) []byte {
	body := append([]byte{255, byte(len(main))}, main...)
	if len(main) > 255 {
		body = append(binary.LittleEndian.AppendUint32([]byte{254}, uint32(len(main))), main...)
	}
	if len(main) == 0 {
		body = nil
	}
	head := make([]byte, recordHeader)
	binary.LittleEndian.PutUint32(head, uint32(recordHeader+len(body)))
	copy(head[8:], prev)
	head[16], head[17] = info, manager
	sum := crc32.Update(crc32.Checksum(body, castagnoli), castagnoli, head[:20])
	binary.LittleEndian.PutUint32(head[20:], sum)
	return append(head, body...)
}
