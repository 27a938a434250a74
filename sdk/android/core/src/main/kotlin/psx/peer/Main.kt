package psx.peer
fun main() { println("x") }
